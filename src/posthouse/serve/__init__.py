"""The one composition root: wiring, supervisor, worker, control socket."""
