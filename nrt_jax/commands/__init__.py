"""The commands: `flags` says what each takes, the module of its name what it does (`run(args)`)."""
