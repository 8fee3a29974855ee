//! Causes of errors, in as much detail as the program needs to decide how to continue.

use std::io;

use super::Kind;

/// The cause of an error. The program decides by this alone; scripts get the [`Kind`] that follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    // Missing things.
    /// No such key.
    NoSuchKey,
    /// No such repo, ref or cache.
    NotFound,
    /// The repo is there, but not this revision of it.
    NoSuchRevision,
    /// No such bucket.
    NoSuchBucket,
    /// No such multipart upload, or not with these parts: it has been completed, or aborted by another program or a
    /// lifecycle rule of the bucket.
    NoSuchUpload,

    // Bytes that are not what they should be.
    /// The content of an object, or a listing from the Hub, is not valid.
    Invalid,
    /// An object or a listing that is larger than any valid one.
    TooLarge,
    /// Stored bytes, here or in the bucket, do not match their name.
    Corrupt,
    /// The object in the bucket does not have the expected size.
    WrongSize,
    /// Bytes were damaged in transit.
    Damaged,
    /// The store accepted an object without an error, but does not have it.
    NotKept,

    // Rejections by the store.
    /// The object is not, or no longer, the one that was expected (If-Match or If-None-Match failed).
    Changed,
    /// The store does not know this request or one of its headers.
    Unsupported,
    /// The keys are wrong, or there are none.
    BadCredentials,
    /// The keys have expired.
    Expired,
    /// The keys are valid, but not allowed to do this.
    Denied,
    /// The account is closed, suspended or in debt.
    Account,
    /// The bucket is in another region.
    WrongRegion,
    /// The store is full, or a cap is reached.
    Full,
    /// The object is archived, and must be restored before it can be read.
    Archived,
    /// The bucket is requester-pays, and the user has not agreed to pay.
    PayerNeeded,
    /// The repo looks gated, or the Hub does not give access to it.
    Gated,
    /// A retention rule or an object lock protects the object.
    Locked,
    /// The store accepts only encrypted objects.
    EncryptionNeeded,
    /// The encryption key cannot be used.
    EncryptionKey,
    /// The store does not support the storage class.
    StorageClass,
    /// The store does not accept the bucket's name.
    BucketName,
    /// The bucket's name belongs in the host.
    PathStyle,
    /// The bucket's name belongs in the path.
    VirtualStyle,
    /// The store accepts uploads only with a checksum.
    ChecksumNeeded,
    /// The store accepts uploads only with a signed hash of the content.
    HashNeeded,
    /// A limit of the store: on bytes, parts, or the length of a key.
    Limit,
    /// The local clock is wrong.
    ClockSkew,

    // Why there is no proper response.
    /// The store is overloaded or temporarily unavailable.
    Busy,
    /// The server asks for a longer wait than this run allows.
    RateLimited,
    /// No connection.
    Unreachable,
    /// No response in time after connecting, or the connection broke.
    Broken,
    /// Too few bytes of a response arrived in time.
    Stalled,
    /// A truncated response.
    Incomplete,
    /// The server is not an S3 store.
    NotS3,
    /// A response that such a service never sends: a login page, a listing that does not end.
    Garbled,
    /// The server's certificate cannot be trusted.
    Certificate,
    /// The server speaks plain HTTP, but the request used TLS.
    NoTls,
    /// The server speaks TLS, but the request used plain HTTP.
    Tls,
    /// The proxy refuses.
    ProxyRefused,

    // Problems on this machine.
    /// Wrong flags, configuration or environment.
    Usage,
    /// The file system denies access.
    Permission,
    /// A file of the cache was removed while it was in use.
    Vanished,
    /// The disk is full.
    DiskFull,
    /// A signal.
    Interrupted,
    /// A bug in this program.
    Internal,

    /// Anything else.
    Other,
}

impl Cause {
    /// Returns the cause of an I/O error on this machine.
    pub fn of_io(error: &io::Error) -> Cause {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Cause::Permission,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Cause::DiskFull,
            _ => Cause::Other,
        }
    }

    /// Returns the kind, which is the word in `--json` and decides the exit code.
    pub fn kind(self) -> Kind {
        use Cause::*;
        match self {
            NoSuchKey | NotFound | NoSuchRevision => Kind::NotFound,
            NoSuchBucket => Kind::MissingBucket,
            Invalid | TooLarge | Corrupt | WrongSize | Damaged | NotKept => Kind::Integrity,
            BadCredentials | Expired | Denied | Account | Gated | Locked => Kind::Credentials,
            Usage | WrongRegion | PayerNeeded | EncryptionNeeded | EncryptionKey | StorageClass | BucketName
            | PathStyle | VirtualStyle | ChecksumNeeded | HashNeeded | ClockSkew => Kind::Usage,
            // An archived object is as good as out of reach.
            Changed | Archived | Busy | RateLimited | Unreachable | Broken | Stalled | Incomplete | NotS3 | Garbled
            | Certificate | NoTls | Tls | ProxyRefused => Kind::Unavailable,
            Permission => Kind::Permission,
            Internal => Kind::Internal,
            Interrupted => Kind::Interrupted,
            NoSuchUpload | Unsupported | Full | Limit | DiskFull | Vanished | Other => Kind::Failed,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(self) -> bool {
        use Cause::*;
        matches!(self, Busy | Unreachable | Broken | Stalled | Damaged | Incomplete)
    }

    /// Whether the store does not accept the credentials, which may change at any moment.
    pub fn is_identity(self) -> bool {
        matches!(self, Cause::BadCredentials | Cause::Expired)
    }

    /// Whether the store refuses because of the user or the account.
    pub fn is_denial(self) -> bool {
        self.is_identity() || matches!(self, Cause::Denied | Cause::Account | Cause::Locked)
    }

    /// Whether the failure may go away with nothing changed here: permissions may be granted, and a network may recover.
    pub fn may_pass(self) -> bool {
        self.is_transient() || self.is_denial() || self.is_out_of_reach()
    }

    /// Whether the server does not respond, or not properly.
    fn is_out_of_reach(self) -> bool {
        use Cause::*;
        matches!(
            self,
            Changed
                | Archived
                | Busy
                | RateLimited
                | Unreachable
                | Broken
                | Stalled
                | Incomplete
                | NotS3
                | Garbled
                | Certificate
                | NoTls
                | Tls
                | ProxyRefused
        )
    }

    /// Whether it is not there.
    pub fn is_missing(self) -> bool {
        matches!(self, Cause::NoSuchKey | Cause::NotFound | Cause::NoSuchRevision)
    }

    /// Whether what is stored cannot be what its key says.
    pub fn is_invalid(self) -> bool {
        matches!(self, Cause::Invalid | Cause::TooLarge)
    }

    /// Whether another source may deliver what this one does not. A wrong configuration must be fixed, not papered over,
    /// and no source helps against a full disk.
    pub fn is_covered_by_fallback(self) -> bool {
        let is_bad = matches!(self, Cause::Corrupt | Cause::WrongSize | Cause::Damaged | Cause::NotKept);
        self.is_missing() || self.is_invalid() || is_bad || self.is_out_of_reach()
    }

    /// Whether every other request to the store must fail for the same reason.
    pub fn is_final(self) -> bool {
        matches!(self, Cause::Certificate | Cause::NoTls | Cause::Tls | Cause::ProxyRefused | Cause::Account)
    }

    /// Whether many requests to a store fail for this reason, and not because of one of them.
    pub fn is_shared(self) -> bool {
        use Cause::*;
        self.is_final()
            || self.is_identity()
            || matches!(
                self,
                Full | NotS3
                    | Denied
                    | Locked
                    | EncryptionNeeded
                    | EncryptionKey
                    | StorageClass
                    | BucketName
                    | PayerNeeded
                    | ClockSkew
            )
    }

    /// Whether a store that refuses an object for this reason may accept others.
    pub fn is_of_one_object(self) -> bool {
        use Cause::*;
        self.is_transient() || matches!(self, NoSuchKey | NoSuchUpload | Changed | Limit | TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts rely on these.
    #[test]
    fn exit_codes_follow_from_causes() {
        use Cause::*;
        let cases: [(u8, &[Cause]); 8] = [
            (1, &[Other, Full, DiskFull, Vanished, Limit, Unsupported, NoSuchUpload]),
            (
                2,
                &[
                    Usage,
                    WrongRegion,
                    PayerNeeded,
                    EncryptionNeeded,
                    EncryptionKey,
                    StorageClass,
                    BucketName,
                    PathStyle,
                    VirtualStyle,
                    ChecksumNeeded,
                    HashNeeded,
                    ClockSkew,
                ],
            ),
            (3, &[BadCredentials, Expired, Denied, Account, Gated, Locked, Permission]),
            (4, &[NoSuchKey, NotFound, NoSuchRevision, NoSuchBucket]),
            (5, &[Invalid, TooLarge, Corrupt, WrongSize, Damaged, NotKept]),
            (
                6,
                &[
                    Changed,
                    Archived,
                    Busy,
                    RateLimited,
                    Unreachable,
                    Broken,
                    Stalled,
                    Incomplete,
                    NotS3,
                    Garbled,
                    Certificate,
                    NoTls,
                    Tls,
                    ProxyRefused,
                ],
            ),
            (70, &[Internal]),
            (130, &[Interrupted]),
        ];
        for (code, causes) in cases {
            for cause in causes {
                assert_eq!(cause.kind().exit_code(), code, "{cause:?}");
            }
        }
    }

    #[test]
    fn another_source_makes_up_for_what_is_missing_bad_or_out_of_reach() {
        use Cause::*;
        for cause in [NoSuchKey, NotFound, Invalid, TooLarge, Corrupt, WrongSize, Damaged, Busy, Archived, Tls] {
            assert!(cause.is_covered_by_fallback(), "{cause:?}");
        }
        for cause in [Denied, BadCredentials, NoSuchBucket, Usage, Permission, DiskFull, Full, Other, Interrupted] {
            assert!(!cause.is_covered_by_fallback(), "{cause:?}");
        }
    }

    #[test]
    fn time_helps_against_the_network_and_the_store_and_not_against_bytes_at_rest() {
        use Cause::*;
        assert!([Damaged, Busy, Broken, Denied, Expired, NotS3, Changed].into_iter().all(Cause::may_pass));
        assert!(![Corrupt, WrongSize, Invalid, NotKept, Usage, Other].into_iter().any(Cause::may_pass));
    }
}
