//! The host's end of the worker protocol, with workers that the tests play.

mod conformance;
mod floods;
mod lab;
