"""An exported decoder in vLLM, which serves many at once: prompts go on, each by what is likeliest.

pip install vllm
python examples/vllm_generate.py runs/mine/export "Once upon a time" "If the"
vllm serve runs/mine/export
"""

import sys

from vllm import LLM, SamplingParams


def main(export: str, prompts: list[str]) -> None:
    model = LLM(export, dtype="float32", enforce_eager=True)  # without these it is faster, and rounds
    for answer in model.generate(prompts, SamplingParams(temperature=0, max_tokens=16)):
        print(repr(answer.prompt + answer.outputs[0].text))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
