//! A typed client of Hearth's own HTTP API, which the crate `api` describes.
//!
//! ```no_run
//! # async fn example() -> Result<(), client::ClientError> {
//! let token = client::Token::new("…")?;
//! let client = client::Client::new("http://127.0.0.1:8080", Some(token))?;
//! for function in client.functions().await? {
//!     println!("{} at {}", function.name, function.url);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Errors are written for the person who sees them: they say what to do. Not here: where the URL and
//! the token come from, and how anything is printed.

mod client;
mod error;
mod invoke;
mod lines;
mod local;
mod nearest;
mod token;

pub use client::{Client, Deploying, Source};
pub use error::ClientError;
pub use invoke::{Invocation, Reply};
pub use lines::Lines;
pub use nearest::nearest;
pub use reqwest::{Method, StatusCode, Url, header};
pub use token::Token;
