"""The console commands: one short function each; nothing heavy is imported before the config is known to be good."""
