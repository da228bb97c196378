"""The web page, `vqvdm app`: generate, reconstruct, look inside a model, watch runs.

settings.py  what is asked for, within limits; description.py what a form must know of a model, from its files alone
studio.py    what the page can do, without a page: from checked settings to videos, step by step, one job at a time
maker.py     the model at work; inspection.py what its tokenizer makes of a video
gallery.py   what was made, kept for a while under names that cannot be guessed, and written in any format
html.py      pieces of HTML; mistakes.py a user's mistake as the page says it
generate.py, reconstruct.py, inside.py, follow.py    the tabs, in gradio
page.py      all of them together
waiting.py   gradio's queue within bounds; uploads.py the folder of uploads, swept
server.py    the page on a port; the files of the gallery
command.py   `vqvdm app`

The page is up before the libraries of the networks are loaded, which takes longer: of these modules only maker.py and
inspection.py import them, and command.py fetches both in a thread.
"""
