// Files that survive a reload: a table of the browser's database. Without one, nothing is kept.

let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("kinema.studio", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("kept");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function act(mode, run) {
  try {
    const table = (await database()).transaction("kept", mode).objectStore("kept");
    const request = run(table);
    return await new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } catch {
    return undefined; // full or forbidden: the page works, and forgets
  }
}

export const keep = (key, value) => act("readwrite", (table) => table.put(value, key));
export const kept = (key) => act("readonly", (table) => table.get(key));
export const dropKept = (key) => act("readwrite", (table) => table.delete(key));
export const keptKeys = async () => (await act("readonly", (table) => table.getAllKeys())) ?? [];
