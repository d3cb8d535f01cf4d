"""Self-supervised methods, one file each: a module whose `forward` takes views and gives a loss."""
