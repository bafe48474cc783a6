"""Scores of pairs of texts: LLaMA-Factory's ROUGE and BLEU-4 (rouge_chinese 1.0.3, jieba 0.42.1, nltk), and GSM8K's answers by the
patterns of lm-evaluation-harness's task. Writes crates/train/tests/goldens/metrics.json.
"""

import json
import random
import re
from pathlib import Path

import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

OUT = Path(__file__).parent.parent / "crates/train/tests/goldens/metrics.json"
WORDS = (
    "the a cat dog sat on mat ran quickly 3.14 12% isn't C++ e-mail foo_bar why? yes! no. \n I've 你好 世界 今天 天气 很 好 "
    "北京 大学 生活 我们 。 ？ ， “ ” …… ...... ? ! ; : ( ) «é» naïve Straße 日本語 テスト 한국어 🙂 3,000 $5 x=2"
).split(" ")
PAIRS = [
    ("", ""), ("", "a"), ("a", ""), (" ", "a b"), ("a b c", "a b c"), ("The cat sat on the mat.", "A cat sat on a mat."),
    ("我来到北京清华大学", "他来到了网易杭研大厦"), ("小明硕士毕业于中国科学院计算所，后在日本京都大学深造", "小明毕业于中国科学院计算所。"),
    ("Is it? \nYes.", "Is it? Yes."), ("他说：“好。”然后走了。", "他说：“好。”走了？"), ("abc", "xyz"), ("aaaa", "aa"), ("ab", "abcdefgh"),
    ("今天天气很好!Let's go out.", "今天天气真好！我们出去吧。"), ("等等……好了……吗", "等等...... 好了"),
]  # fmt: skip
ANSWERS = [
    ("so 3+4=7\n#### 7", "3+4=7\n#### 7"), ("The answer is 1,234.", "#### 1234"), ("#### $1,200.", "x\n#### 1200"), ("#### 7.0", "#### 7"),
    ("#### -5", "#### -5"), ("He has 5 apples and 6 pears", "#### 6"), ("none", "#### 6"), ("#### 7 and then 8", "#### 7"), ("7", "#### 7"),
    ("It costs $18.", "#### 18"), ("####18", "#### 18"), ("12 - 2 = -10", "#### 10"), ("#### 3 #### 4", "#### 4"), ("a. b. c.", "#### 1"),
    ("equals 2.50", "#### 2.50"), ("#### 10.", "#### 10"), ("#### 10,000", "#### 10000"),
]  # fmt: skip


def similarity(pred: str, label: str) -> list[float]:
    hypothesis, reference = list(jieba.cut(pred)), list(jieba.cut(label))
    if not " ".join(hypothesis).split() or not " ".join(reference).split():
        scores = {f"rouge-{n}": {"f": 0.0} for n in "12l"}
    else:
        scores = Rouge().get_scores(" ".join(hypothesis), " ".join(reference))[0]
    bleu = sentence_bleu([list(label)], list(pred), smoothing_function=SmoothingFunction().method3)
    return [scores["rouge-1"]["f"], scores["rouge-2"]["f"], scores["rouge-l"]["f"], float(bleu)]


def plain(text: str) -> str:
    for pattern in [",", r"\$", r"(?s).*#### ", r"\.$"]:
        text = re.sub(pattern, "", text)
    return text.lower()


def gsm8k(pred: str, label: str) -> list[bool]:
    strict = re.findall(r"#### (\-?[0-9\.\,]+)", pred)
    flexible = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", pred)
    first = strict[0].strip() if strict else "[invalid]"
    last = next(m for m in flexible[-1] if m).strip() if flexible else "[invalid]"
    return [plain(first) == plain(label), plain(last) == plain(label)]


def main() -> None:
    rng = random.Random(5)
    pairs = list(PAIRS)
    for _ in range(150):
        join = rng.choice(["", " "])
        label = [rng.choice(WORDS) for _ in range(rng.randint(1, 25))]
        pred = [w for w in label if rng.random() < 0.8] if rng.random() < 0.7 else [rng.choice(WORDS) for _ in range(9)]
        pairs.append((join.join(pred), join.join(label)))
    out = {
        "similarity": [{"predict": p, "label": l, "scores": similarity(p, l)} for p, l in pairs],
        "gsm8k": [{"predict": p, "label": l, "right": gsm8k(p, l)} for p, l in ANSWERS],
    }
    OUT.write_text(json.dumps(out, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
