//! The store from outside: what is promised about lines, limits, followers and crashes.

mod crash;
mod disk;
mod flood;
mod follow;
mod lab;
mod lines;
mod rotation;
