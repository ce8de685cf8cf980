"""The evidence of docs/evidence/video-diffusion.md: frame by frame against a video model, and VDM's own claims.

    python -m benchmarks.evidence            # all of it, resumed where it was stopped; also `make evidence`
    python -m benchmarks.evidence train video    # one model from scratch

The protocol is in docs/decisions/0023-evidence.md and says what was fixed before anything was measured.
"""
