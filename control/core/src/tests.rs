//! Stories and properties over the whole state machine.

mod checks;
mod histories;
mod rejections;
mod sim;
mod stories;
mod updates;
