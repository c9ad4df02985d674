from hypothesis import settings

# A slow machine is no failure.
settings.register_profile("posejob", settings.default, deadline=None)
settings.load_profile("posejob")
