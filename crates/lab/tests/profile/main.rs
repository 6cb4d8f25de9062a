//! Profiles: what is named of a model of a true shape, and how times become rows and events.

mod bytes;
mod events;
mod session;
mod times;
