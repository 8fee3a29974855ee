//! The local cache: where things are ([`layout`]), what is there ([`scan`]), and how to change it safely. What else
//! writes into it, and by which names that is known: [`clients`].
//!
//! Reading is [`scan`] (-> [`scan::Inventory`]), [`identify`] (names for files that are no links), [`read`]
//! (opening a blob without counting as a use), [`gated`] and [`mod@pointer`] (judging content), [`litter`] (names that
//! are no part of a cache), [`usage`] (bytes and last use). Writing is [`place`] (directories, links and small files, never through a link) and [`lock`]
//! (huggingface_hub's locks and our own); [`mend`] repairs refs. Deleting is [`remove`], and [`shared`] for the cache-wide store.

pub mod clients;
pub mod donors;
pub mod facts;
pub mod gated;
pub mod hidden;
pub mod identify;
pub mod layout;
mod licenses;
pub mod litter;
pub mod local;
pub mod lock;
pub mod mend;
pub mod place;
pub mod pointer;
pub mod read;
pub mod remove;
pub mod root;
pub mod scan;
pub mod shared;
pub mod space;
pub mod target;
pub mod usage;
