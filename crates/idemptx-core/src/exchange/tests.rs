//! The machine, row by row and interleaving by interleaving.

mod identity;
mod interleavings;
mod passage;
mod table;
mod transactions;
mod world;
