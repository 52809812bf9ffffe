"""The network side: MQTT, trust, store, slots, telemetry. Touches no camera and no accelerator."""
