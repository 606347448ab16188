"""``cmmfnet serve``: colours over HTTP (api.py) and in a browser (page.py). FastAPI, Gradio and
uvicorn are imported only when the command runs."""
