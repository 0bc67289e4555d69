//! The machine, row by row and interleaving by interleaving.

mod interleavings;
mod table;
mod world;
