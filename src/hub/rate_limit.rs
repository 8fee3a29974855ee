//! Rate limiting. The Hub counts requests, and status 429 says how long the client has to wait. One wait applies to all
//! requests of a run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

use crate::error::{Cause, Failure};
use crate::progress::{Event, Progress};

/// Minimum wait, for when the Hub asks for less.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// Waits that end this close to each other are reported as one.
const SAME_WAIT: Duration = Duration::from_secs(2);

/// Holds back all requests of a run while the Hub's rate limit is exceeded.
pub struct RateLimiter {
    max_wait: Duration,
    progress: Arc<dyn Progress>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    until: Option<Instant>,
    given_up: Option<Duration>,
}

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter").field("max_wait", &self.max_wait).finish_non_exhaustive()
    }
}

impl RateLimiter {
    /// Creates a rate limiter that lets a request wait up to `max_wait`, and reports waits to `progress`.
    pub fn new(max_wait: Duration, progress: Arc<dyn Progress>) -> Self {
        RateLimiter { max_wait, progress, state: Mutex::default() }
    }

    /// Waits until requests may be sent.
    ///
    /// # Errors
    /// [`Cause::RateLimited`] if an earlier wait was too long.
    pub async fn wait_for_turn(&self) -> Result<(), Failure> {
        loop {
            let until = {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(wait) = state.given_up {
                    return Err(self.wait_too_long(wait));
                }
                state.until
            };
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => return Ok(()),
            }
        }
    }

    /// Records the wait that the Hub asked for. `since` is when the same request was first rejected.
    ///
    /// # Errors
    /// [`Cause::RateLimited`] if the wait is too long. No other request is sent then.
    pub fn record_limit(&self, wait: Duration, since: Instant) -> Result<(), Failure> {
        let wait = wait.max(MIN_WAIT);
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(since).saturating_add(wait).as_secs() > self.max_wait.as_secs() {
            state.given_up = Some(wait);
            return Err(self.wait_too_long(wait));
        }
        let until = now + wait;
        let known = state.until.filter(|known| *known > now);
        if known.is_none_or(|known| until > known) {
            state.until = Some(until);
        }
        drop(state);
        if known.is_none_or(|known| until > known + SAME_WAIT) {
            self.progress.event(Event::Note(format!(
                "the Hub's rate limit is reached: waiting {} s, as requested",
                wait.as_secs_f64().ceil()
            )));
        }
        Ok(())
    }

    fn wait_too_long(&self, wait: Duration) -> Failure {
        let (wait, max_wait) = (wait.as_secs_f64().ceil(), self.max_wait.as_secs());
        let detail =
            format!("its rate limit is reached; it asks for a wait of {wait} s, and --hub-wait allows {max_wait} s");
        Failure::new(Cause::RateLimited, detail)
    }
}

/// Returns the longest wait that the headers of a response ask for.
pub fn requested_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let limits = headers.get_all("ratelimit").iter().filter_map(|value| value.to_str().ok()).filter_map(reset);
    let plain = ["ratelimit-reset", "x-ratelimit-reset-after"].into_iter().filter_map(|name| seconds(text(name)?));
    let retry = text(RETRY_AFTER.as_str()).and_then(|value| {
        seconds(value).or_else(|| {
            let then = http_date(value)?;
            // Relative to the server's own clock, if it sends a date.
            let now = text(DATE.as_str()).and_then(http_date).unwrap_or(now);
            Some(then.duration_since(now).unwrap_or_default())
        })
    });
    limits.chain(plain).chain(retry).max()
}

/// Parses a header like `"api";r=0;t=55, "resolvers";r=12;t=80`, and returns the longest wait of the exhausted limits,
/// or of all limits if none is exhausted.
fn reset(value: &str) -> Option<Duration> {
    let mut waits = Vec::new();
    for limit in value.split(',') {
        let of = |name: &str| {
            let parameters = limit.split(';').filter_map(|parameter| parameter.split_once('='));
            let mut named = parameters.filter(|(known, _)| known.trim().eq_ignore_ascii_case(name));
            named.next().and_then(|(_, value)| seconds(value.trim().trim_matches('"')))
        };
        if let Some(wait) = of("t") {
            waits.push((of("r").is_some_and(|left| left.is_zero()), wait));
        }
    }
    let used_up = waits.iter().filter(|(used_up, _)| *used_up).map(|(_, wait)| *wait).max();
    used_up.or_else(|| waits.iter().map(|(_, wait)| *wait).max())
}

fn seconds(text: &str) -> Option<Duration> {
    let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    // A year is as good as forever.
    Duration::try_from_secs_f64(number.min(3.2e7)).ok()
}

fn http_date(text: &str) -> Option<SystemTime> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text.trim()).ok()?;
    SystemTime::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        pairs.iter().for_each(|(name, value)| {
            headers.append(*name, value.parse().unwrap());
        });
        headers
    }

    #[test]
    fn the_wait_is_parsed_from_the_headers() {
        let now = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (pairs, wait) in [
            (&[("ratelimit", "\"api\";r=0;t=55")][..], Some(55)),
            (&[("ratelimit", "\"api\";r=0;t=55, \"resolvers\";r=3;t=200")], Some(55)),
            (
                &[("ratelimit", "\"api\"; t=7 ; r=0"), ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300")],
                Some(7),
            ),
            (&[("ratelimit", "nonsense")], None),
            (&[("retry-after", "12")], Some(12)),
            (&[("retry-after", "12"), ("ratelimit", "\"api\";r=0;t=3")], Some(12)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")], Some(60)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(0)),
            (&[("retry-after", "Sun, 06 Nov 2094 08:50:37 GMT"), ("date", "Sun, 06 Nov 2094 08:50:07 GMT")], Some(30)),
            (&[("retry-after", "-5")], None),
            (&[("retry-after", "soon")], None),
            (&[], None),
        ] {
            assert_eq!(requested_wait(&headers(pairs), now).map(|wait| wait.as_secs()), wait, "{pairs:?}");
        }
        let huge = requested_wait(&headers(&[("retry-after", "99999999999999999999")]), now).unwrap();
        assert!(huge > Duration::from_secs(3600 * 24));
    }

    #[test]
    fn a_wait_that_is_too_long_fails_every_request() {
        let rate_limiter = RateLimiter::new(Duration::from_secs(10), Arc::new(Silent));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            assert!(rate_limiter.wait_for_turn().await.is_ok());
            assert_eq!(
                rate_limiter.record_limit(Duration::from_secs(11), Instant::now()).unwrap_err().cause,
                Cause::RateLimited
            );
            let failure = rate_limiter.wait_for_turn().await.unwrap_err();
            assert!(failure.detail.contains("11 s") && failure.detail.contains("--hub-wait"), "{}", failure.detail);
        });
    }
}
