//! What happened, as far as the program goes on differently for it.

use std::io;

use super::Kind;

/// What happened. The program decides by this alone; scripts are told the [`Kind`] that follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    // What is not there.
    /// No such key.
    NoSuchKey,
    /// No such repo, ref or cache.
    NotFound,
    /// The repo is there, but not this revision of it.
    NoSuchRevision,
    /// No such bucket.
    NoSuchBucket,
    /// No such multipart upload, or not with these parts: it was completed, or given up by somebody or by a rule of the
    /// bucket.
    NoSuchUpload,

    // Bytes that are not what they should be.
    /// What is stored under a key, or listed by the Hub, is not valid.
    Invalid,
    /// It is larger than anything valid: an object for its key, or a listing.
    TooLarge,
    /// The bytes that are kept, here or in the bucket, are not those of their name.
    Corrupt,
    /// The object in the bucket has another size than it should have.
    WrongSize,
    /// Bytes were damaged on the way.
    Damaged,
    /// The store has taken an object without an error, and does not have it.
    NotKept,

    // What the store refuses.
    /// The object is not, or no longer, the one that was expected (If-Match or If-None-Match failed).
    Changed,
    /// The store does not know this request or one of its headers.
    Unsupported,
    /// The keys are wrong, or there are none.
    BadCredentials,
    /// The keys were right once.
    Expired,
    /// The keys are right, but may not do this.
    Denied,
    /// The account is closed, suspended or in debt.
    Account,
    /// The bucket is in another region.
    WrongRegion,
    /// No room is left, or a cap is reached.
    Full,
    /// The object is in an archive, and has to be restored before it can be read.
    Archived,
    /// Who asks has to pay, and has not agreed to.
    PayerNeeded,
    /// The repo looks gated, or the Hub does not give access to it.
    Gated,
    /// A retention rule keeps the object.
    Locked,
    /// The store takes encrypted objects only.
    EncryptionNeeded,
    /// The key for encryption cannot be used.
    EncryptionKey,
    /// The store does not have the storage class.
    StorageClass,
    /// The store does not accept such a name for a bucket.
    BucketName,
    /// The bucket's name belongs in the host.
    PathStyle,
    /// The bucket's name belongs in the path.
    VirtualStyle,
    /// The store takes uploads with a checksum only.
    ChecksumNeeded,
    /// The store takes uploads with a signed hash of the content only.
    HashNeeded,
    /// More or less than the store takes: bytes, parts, or characters of a key.
    Limit,
    /// The local clock is wrong.
    ClockSkew,

    // What keeps an answer from coming.
    /// The store is overloaded or broken for the moment.
    Busy,
    /// It asks to wait longer than this run may.
    RateLimited,
    /// No connection.
    Unreachable,
    /// Connected, but no answer in time, or the connection broke.
    Broken,
    /// Too few bytes of an answer arrive in time.
    Stalled,
    /// An answer that ends in the middle.
    Incomplete,
    /// What answers is no S3 store.
    NotS3,
    /// It answered, but not as such a service does: a portal's page, a listing that does not end.
    Garbled,
    /// The server's certificate cannot be trusted.
    Certificate,
    /// The server uses plain HTTP, and was asked over TLS.
    NoTls,
    /// The other side speaks TLS, and was asked in plain http.
    Tls,
    /// The proxy refuses.
    ProxyRefused,

    // What is wrong on this machine.
    /// Wrong flags, configuration or environment.
    Usage,
    /// The file system denies it.
    Permission,
    /// A file of the cache was removed while it was needed.
    Vanished,
    /// The disk is full.
    DiskFull,
    /// A signal.
    Interrupted,
    /// A fault of this program.
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

    /// What scripts are told: the word in `--json`, and by it the exit code.
    pub fn kind(self) -> Kind {
        use Cause::*;
        match self {
            NoSuchKey | NotFound | NoSuchRevision => Kind::NotFound,
            NoSuchBucket => Kind::MissingBucket,
            Invalid | TooLarge | Corrupt | WrongSize | Damaged | NotKept => Kind::Integrity,
            BadCredentials | Expired | Denied | Account | Gated | Locked => Kind::Credentials,
            Usage | WrongRegion | PayerNeeded | EncryptionNeeded | EncryptionKey | StorageClass | BucketName
            | PathStyle | VirtualStyle | ChecksumNeeded | HashNeeded | ClockSkew => Kind::Usage,
            // What is archived is as good as out of reach.
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

    /// Whether the credentials are not accepted, which may be so from one moment to the next.
    pub fn is_identity(self) -> bool {
        matches!(self, Cause::BadCredentials | Cause::Expired)
    }

    /// Whether the store refuses because of who asks.
    pub fn is_denial(self) -> bool {
        self.is_identity() || matches!(self, Cause::Denied | Cause::Account | Cause::Locked)
    }

    /// Whether the other side may do it another time, with nothing changed here: a store that refuses may change its
    /// mind, and a network may heal.
    pub fn may_pass(self) -> bool {
        self.is_transient() || self.is_denial() || self.is_out_of_reach()
    }

    /// Whether the other side does not answer, or not as it should.
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

    /// Whether something is stored and cannot be what its key says.
    pub fn is_invalid(self) -> bool {
        matches!(self, Cause::Invalid | Cause::TooLarge)
    }

    /// Whether another source may have what this one does not give. A wrong configuration must be fixed, not papered over;
    /// and no source helps a full disk.
    pub fn is_covered_by_fallback(self) -> bool {
        let is_bad = matches!(self, Cause::Corrupt | Cause::WrongSize | Cause::Damaged | Cause::NotKept);
        self.is_missing() || self.is_invalid() || is_bad || self.is_out_of_reach()
    }

    /// Whether every other request to the store must fail for the same reason.
    pub fn is_final(self) -> bool {
        matches!(self, Cause::Certificate | Cause::NoTls | Cause::Tls | Cause::ProxyRefused | Cause::Account)
    }

    /// Whether it is the reason why many requests to a store fail, and no fault of one of them.
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

    /// Whether a store that refuses to take an object for it may refuse just this one.
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
