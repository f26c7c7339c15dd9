//! Stories and properties over the whole state machine.

mod balancing;
mod checks;
mod drains;
mod health;
mod histories;
mod names;
mod ports;
mod rejections;
mod sim;
mod stored;
mod stories;
mod updates;
mod weights;
