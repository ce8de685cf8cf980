"""Where training clips come from: the procedural playroom, and folders of captioned videos."""
