"""`smalti mirror`: what a run needs of an archive, copied with a catalogue that works without internet."""
