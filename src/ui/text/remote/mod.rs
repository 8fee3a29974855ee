//! The output of the commands below `remote`.

mod deletion;
mod du;

/// What a bucket with versioning means for whoever deletes from it.
const VERSIONED: &str = "note: this bucket keeps earlier versions of deleted objects: their space comes back only when a \
                         lifecycle rule expires those";
