"""What goes on in a coordinator, for those who watch: events, metrics, timelines, and trackers of experiments."""
