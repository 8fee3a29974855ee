//! The local cache: where things are ([`layout`]), what is there ([`scan`]), and how to change it safely.
//!
//! Reading is [`scan`] (-> [`scan::Inventory`]), [`identify`] (names for files that are no links), [`read`]
//! (opening a blob without counting as a use), [`gated`] and [`mod@pointer`] (judging content). Writing is [`place`]
//! (directories, links and small files, never through a link) and [`lock`] (huggingface_hub's locks and our own).

pub mod gated;
pub mod identify;
pub mod layout;
pub mod lock;
pub mod place;
pub mod pointer;
pub mod read;
pub mod scan;
pub mod space;
