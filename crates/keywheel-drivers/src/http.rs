//! The one HTTP client of all drivers: errors keep kind, status and host, and lose URL and body (H109).
