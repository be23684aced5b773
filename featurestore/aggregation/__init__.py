"""The one algebra of windows, partials and tiles, used offline, in the stream and online."""
