//! Stories and properties over the whole state machine.

mod balancing;
mod checks;
mod histories;
mod names;
mod rejections;
mod sim;
mod stored;
mod stories;
mod updates;
