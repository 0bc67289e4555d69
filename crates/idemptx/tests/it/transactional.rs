//! Operations that happen exactly once: their effects and their records are committed together.

mod commit;
mod decorated;
mod extractor;
mod killed;
mod manual;
mod processes;
mod recovery_points;
mod shop;
