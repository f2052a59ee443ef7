//! What every protocol promises, as tests.
