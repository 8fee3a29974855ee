//! The output of the commands below `remote`.

mod deletion;
mod du;

/// Note for deletions from a bucket with versioning.
const VERSIONED: &str = "note: this bucket keeps earlier versions of deleted objects: their space comes back only when a \
                         lifecycle rule expires those";
