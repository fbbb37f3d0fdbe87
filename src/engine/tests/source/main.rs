//! Sources, from outside: files, a hub, addresses and package indexes, against servers that run inside the test.

extern crate levain_engine as engine;

mod address;
mod disk;
mod hub;
mod packages;
mod server;
mod store;
