//! The door with real sockets, in front of functions in memory.

mod calls;
mod crowd;
mod hosts;
mod lab;
mod limits;
mod paths;
mod smuggling;
