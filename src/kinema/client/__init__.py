"""`kinema.connect`: a video service (``kinema serve``) with the methods of a loaded model.

`service` has the object that users hold, `http` sends requests and bounds what is read, `following` follows a job's
events, `inputs` sends files, and `outputs` reads previews and finished clips. Nothing here imports the server, and
torch is imported when the first image arrives.
"""
