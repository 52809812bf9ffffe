"""The host side of jetfleet: builds, signs and publishes models, rolls them out, watches the fleet."""
