"""FedVQA: the embedded data, made from scratch so that a run needs no network.

Three clients with preferences that conflict by default, and one held-out category that mixes two of them:

1. ``render``     draws 32 x 32 images and asks a question with one right answer;
2. ``annotator``  ranks answers by a documented rule and errs at a set rate;
3. ``write``      writes client, public and evaluation folders in the bring-your-own format.
"""
