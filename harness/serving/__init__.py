"""An endpoint that editors can use: a service (model, settings, queue), its engine thread, and HTTP in front."""
