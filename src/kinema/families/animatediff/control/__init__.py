"""What steers a clip beside its prompt: SparseCtrl, ControlNets, pictures by IP-Adapter, and PIA's first frame."""
