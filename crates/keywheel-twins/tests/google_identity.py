"""How Google's own client signs in at the twin. Says what is wrong, or nothing."""

import os
import sys
from google.auth import exceptions, identity_pool
from google.auth.transport.requests import Request

endpoint, subject, account, audience = sys.stdin.read().split()
os.environ["GCE_METADATA_HOST"] = endpoint.removeprefix("http://")
from google.auth.compute_engine import _metadata

token, _ = _metadata.get_service_account_token(Request(), service_account="default")
assert token.startswith("ya29.")

def signed_in(source, audience=audience):
    credentials = identity_pool.Credentials.from_info({
        "type": "external_account",
        "audience": audience,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{endpoint}/v1/token",
        "service_account_impersonation_url":
            f"{endpoint}/v1/projects/-/serviceAccounts/{account}:generateAccessToken",
        "credential_source": source,
    }, scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(Request())
    return credentials.token

of_url = {"url": f"{endpoint}/subject", "headers": {"X-Job": "7"},
          "format": {"type": "json", "subject_token_field_name": "value"}}
assert signed_in(of_url) == token
with open("subject", "w") as out:
    out.write(subject)
assert signed_in({"file": "subject"}) == token
for wrong in [lambda: signed_in(of_url, "//iam.googleapis.com/another"),
              lambda: signed_in({**of_url, "headers": {}})]:
    try:
        wrong()
    except exceptions.GoogleAuthError:
        continue
    raise AssertionError("it was let in")
