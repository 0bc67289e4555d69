//! The machine, row by row and interleaving by interleaving.

mod interleavings;
mod passage;
mod table;
mod transactions;
mod world;
