"""Shapes over numbers and lists of numbers; notation in `markup`."""

from __future__ import annotations

from dagger_nb.tasks.markup import parse

LOOPS = parse("""
@sum_where add total | a:ints b:int -> int
def $f($a, $b):
    '''Return the $agg of the $a that are $cmp $b.'''
    $acc = %agg.start
    for $a1 in $a:
        if $a1 %cmp $b:
            $acc %agg.op «$a1|$b:variable»
    return $acc

@count_where count tally | a:ints b:int -> int
def $f($a, $b):
    '''Return how many of the $a are $cmp $b.'''
    $acc = «0|1:start_value»
    for $a1 in $a:
        if $a1 %cmp $b:
            $acc «+=|-=:operator» «1|2:constant»
    return $acc

@keep_where keep pick | a:ints b:int -> ints
def $f($a, $b):
    '''Return the $a that are $cmp $b, in order.'''
    $out = []
    for $a1 in $a:
        if $a1 %cmp $b:
            $out.«append(|insert(0, :method»«$a1|$b:variable»)
    return $out

@shift_all shift move | a:ints b:int -> ints
def $f($a, $b):
    '''Return a list of each $a1 $op $b.'''
    $out = []
    for $a1 in $a:
        $out.append($a1 %op «$b|$a1:variable»)
    return $out

@most find pick | a:ints -> int
def $f($a):
    '''Return the $most of the $a.'''
    $best = $a[0]
    for $a1 in $a:
        if $a1 %most $best:
            $best = $a1
    return $best

@running run grow | a:ints -> ints
def $f($a):
    '''Return the running sums of the $a, starting from 0.'''
    $acc = «0|1:start_value»
    $out = []
    for $a1 in $a:
        $acc «+=|-=:operator» $a1
        $out.append(«$acc|$a1:variable»)
    return $out

@find_first seek find | a:ints b:int -> int
def $f($a, $b):
    '''Return the index of the first $a1 $cmp $b, or -1.'''
    for $i in range(len($a)):
        if $a[$i] %cmp $b:
            return $i
    return «-1|0|1:constant»

@gaps step gap | a:ints -> ints
def $f($a):
    '''Return each $a1 minus the $a1 before it.'''
    $out = []
    for $i in range(«1|2|0:off_by_one», len($a)):
        $out.append($a[$i] «-|+:operator» $a[$i - «1|2:off_by_one»])
    return $out

@upto sum add | n:pos b:int -> int
def $f($n, $b):
    '''Return $b plus the numbers from 1 to $n, $n included.'''
    $acc = «$b|0:start_value»
    for $i in range(1, «$n + 1|$n|$n + 2:off_by_one»):
        $acc «+=|-=:operator» $i
    return $acc

@weigh weigh match | a:ints c:ints -> int
def $f($a, $c):
    '''Return the sum of each $a1 $op the $c1 at its index.'''
    $acc = «0|1:start_value»
    for $a1, $c1 in zip($a, $c):
        $acc «+=|-=:operator» $a1 %op «$c1|$a1:variable»
    return $acc

@halve halve shrink | a:large -> int
def $f($a):
    '''Return how often $a can be halved while it is $above $lim.'''
    $acc = «0|1:start_value»
    while $a %above %lim:
        $a = $a // «2|3:constant»
        $acc «+=|-=:operator» 1
    return $acc

@digits digit reduce | a:large -> int
def $f($a):
    '''Return the $agg of the decimal digits of $a.'''
    $acc = %agg.start
    while $a > 0:
        $acc %agg.op $a % «10|9|100:constant»
        $a = $a // «10|100:constant»
    return $acc

@rounds repeat cycle | n:pos b:int -> int
def $f($n, $b):
    '''Return $b after $n rounds of $op $num.'''
    for $i in range(«$n|$n + 1|$n - 1:off_by_one»):
        $b = $b %op %num
    return $b

@pairs match pair | a:ints b:int -> int
def $f($a, $b):
    '''Return how many pairs of two $a have a sum $cmp $b.'''
    $acc = «0|1:start_value»
    for i in range(len($a)):
        for j in range(«i + 1|i|i + 2:off_by_one», len($a)):
            if $a[i] «+|-:operator» $a[j] %cmp $b:
                $acc += «1|2:constant»
    return $acc

@climbs climb rise | a:ints -> int
def $f($a):
    '''Return how many $a are $than than the one before.'''
    $acc = «0|1:start_value»
    for $i in range(1, len($a)):
        if $a[$i] %than $a[$i - 1]:
            $acc += «1|2:constant»
    return $acc

@until stop spend | a:ints b:int -> int
def $f($a, $b):
    '''Return the sum of the $a before one is $cmp $b.'''
    $acc = «0|1:start_value»
    for $a1 in $a:
        if $a1 %cmp $b:
            break
        $acc «+=|-=:operator» «$a1|$b:variable»
    return $acc

@last_where last final | a:ints b:int -> int
def $f($a, $b):
    '''Return the last $a1 that is $cmp $b, or $st if none is.'''
    $best = %st
    for $a1 in $a:
        if $a1 %cmp $b:
            $best = «$a1|$b:variable»
    return $best

@parity split even | a:ints -> int
def $f($a):
    '''Return the sum of the $par $a.'''
    $acc = «0|1:start_value»
    for $a1 in $a:
        if $a1 % 2 %par 0:
            $acc «+=|-=:operator» $a1
    return $acc
""")

LISTS = parse("""
@divisible keep split | a:ints -> ints
def $f($a):
    '''Return the $a whose rest by $mod is 0, in order.'''
    return [$a1 for $a1 in $a if $a1 % %mod «==|!=:comparison» 0]

@first_part take head | a:ints b:pos -> ints
def $f($a, $b):
    '''Return the first $b of the $a.'''
    return $a[«:$b|$b:|:$b + 1|:$b - 1:off_by_one»]

@last_part tail drop | a:ints b:pos -> ints
def $f($a, $b):
    '''Return the $a without the first $b.'''
    return $a[«$b:|:$b|$b + 1:|$b - 1::off_by_one»]

@every skip thin | a:ints -> ints
def $f($a):
    '''Return every $nth one of the $a, from the first on.'''
    return $a[«0|1:start_value»::%nth]

@backwards flip turn | a:ints -> ints
def $f($a):
    '''Return the $a in reverse order.'''
    return $a[::«-1|1:constant»]

@sort_numbers sort order | a:ints -> ints
def $f($a):
    '''Return the $a sorted from $order.'''
    return sorted($a, reverse=%order)

@rotate rotate roll | a:ints -> ints
def $f($a):
    '''Return the $a with the first one moved to the end.'''
    return $a[«1|2|0:off_by_one»:] + $a[:«1|2|0:off_by_one»]

@inner trim inner | a:ints -> ints
def $f($a):
    '''Return the $a without the first and the last one.'''
    return $a[«1|0|2:off_by_one»:«-1|-2:off_by_one»]

@put put enter | a:ints b:int -> ints
def $f($a, $b):
    '''Return a copy of the $a with $b put at the $put.'''
    $out = list($a)
    $out.%put«$b|0:variable»)
    return $out

@mean level mean | a:ints -> int
def $f($a):
    '''Return the sum of the $a over their count, rounded down.'''
    return sum($a) «//|*|-:operator» len($a)

@spread spread range | a:ints -> int
def $f($a):
    '''Return the largest minus the smallest of the $a.'''
    return «max|min:min_max»($a) «-|+:operator» «min|max:min_max»($a)

@top cap peak | a:ints -> int
def $f($a):
    '''Return the $mms of the $a, $op $num.'''
    return %mms($a) %op %num

@column read take | a:matrix -> ints
def $f($a):
    '''Return a list of the $end number of each row of $a.'''
    return [row%end for row in $a]

@row_sums row line | a:matrix -> ints
def $f($a):
    '''Return a list of the sum of each row of $a, $op $num.'''
    return [sum(«row|$a:variable») %op %num for row in $a]

@absent miss lack | a:ints b:int -> bool
def $f($a, $b):
    '''Return whether $b is not among the $a.'''
    return $b «not in|in:boolean» $a
""")

PLAIN = parse("""
@difference differ reduce | a:int b:int -> int
def $f($a, $b):
    '''Return $a $op $b.'''
    return $a %op «$b|$a:variable»

@clip clip bound | v:int a:int b:int -> int
def $f($v, $a, $b):
    '''Return $v, but at least $a, then at most $b.'''
    if $v «<|>:comparison» $a:
        $v = «$a|$b:variable»
    if $v «>|<:comparison» $b:
        $v = «$b|$a:variable»
    return $v

@branch charge adjust | a:int b:int -> int
def $f($a, $b):
    '''Return $a $op $b if $a is $cmp $lim.'''
    if $a %cmp %lim:
        return $a %op $b
    # else $a $opb $num
    return $a %opb %num

@within check judge | v:int a:int b:int -> bool
def $f($v, $a, $b):
    '''Return whether $v is $above $a and $below $b.'''
    return $v %above «$a|$b:variable» «and|or:boolean» $v %below $b

@outside check judge | v:int a:int b:int -> bool
def $f($v, $a, $b):
    '''Return whether $v is $below $a or $above $b.'''
    return $v %below $a «or|and:boolean» $v %above «$b|$a:variable»

@choose choose take | a:int b:int -> int
def $f($a, $b):
    '''Return the $mm of $a and $b, $op $num.'''
    return %mm($a, $b) %op %num

@sign rank order | a:int b:int -> int
def $f($a, $b):
    '''Return 1 if $a is more than $b, -1 if less, else 0.'''
    if $a «>|>=|<:comparison» $b:
        return «1|-1:constant»
    if $a «<|<=|>:comparison» $b:
        return «-1|1:constant»
    return «0|1:constant»

@scaled scale price | a:int b:int -> int
def $f($a, $b):
    '''Return $a $add $num times $b.'''
    return $a %add %num * «$b|$a:variable»

@area area cover | a:int b:int v:int -> int
def $f($a, $b, $v):
    '''Return $a times $b, $add $v.'''
    return «$a|$v:variable» «*|+:operator» $b %add $v

@beyond pass reach | a:int b:int -> bool
def $f($a, $b):
    '''Return whether $a $op $num is $cmp $b.'''
    return $a %op %num %cmp $b

@spare share part | a:large b:pos -> int
def $f($a, $b):
    '''Return the rest of $a divided by $b, $op $num.'''
    return $a «%|//:operator» $b %op %num
""")
