"""What every test runs under: hypothesis draws the same examples each time, and never a deadline.

``pytest --hypothesis-profile=dev`` draws new ones.
"""

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci")
