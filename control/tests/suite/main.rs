//! The manager from outside: as a process that is killed, and over real TLS and its local socket.

mod access;
mod fixture;
mod full;
mod join;
mod logs;
mod restart;
mod session;
