"""RunPod's Hub wants a file of this name in every repository. There is nothing to handle: the endpoint of
`.runpod/hub.json` is load-balanced, so that requests go to the image's own server as they are (docs/runpod.md).
"""
