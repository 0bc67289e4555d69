//! Tests of the state machine: tables of single exchanges, and all interleavings of several.

mod handler_ends;
mod identity;
mod interleavings;
mod passage;
mod recall;
mod table;
mod transactions;
mod world;
