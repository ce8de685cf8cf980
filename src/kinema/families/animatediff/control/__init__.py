"""Control beyond the prompt: SparseCtrl, ControlNets, IP-Adapter image prompts, and PIA's first frame."""
