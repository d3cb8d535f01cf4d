"""Training, evaluation, refresh and the command line. Heavy packages are imported where they are used."""
