//! Stand-ins for builds without the feature `fallback`: no [`Hub`] can be created, so no other code here is reachable.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config;
use crate::error::{Error, Failure, Result};
use crate::model::found::Found;
use crate::model::ids::{Commit, RepoName, RepoPath, RepoQuery};
use crate::net::Network;
use crate::progress::Progress;

/// Never created.
#[derive(Debug, Clone)]
pub enum Hub {}

/// Never created.
#[derive(Debug)]
pub enum Body {}

impl Hub {
    /// Always fails.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`]
    pub fn connect(_: &config::Hub, _: &Network, _: Arc<dyn Progress>, _: Duration) -> Result<Hub> {
        Err(Error::usage("this build of hf-cache-sync cannot fall back to the Hub")
            .because("it was built without the feature `fallback`")
            .hint("use a build with this feature, or omit --fallback"))
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn find(&self, _: &RepoQuery, _: Option<&str>) -> Result<Found> {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn open(&self, _: &RepoName, _: &Commit, _: &RepoPath, _: Option<(u64, u64)>) -> Result<Body, Failure> {
        match *self {}
    }

    /// Never called.
    pub fn explain(&self, _: Failure, _: &str) -> Error {
        match *self {}
    }
}

impl Body {
    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match *self {}
    }
}
