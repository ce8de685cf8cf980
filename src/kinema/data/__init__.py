"""Sources of training clips: the procedural playroom and folders of captioned videos."""
