"""The commands of `edge`, a file for each user: who runs a device, who trains, who looks, who keeps a pool."""
