//! Host side of Cleave: image, machine, channels, outcome.
